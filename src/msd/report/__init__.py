"""Reports: tables, figures and pages from manifests, whose results they show and never recompute."""
