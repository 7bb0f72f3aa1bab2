# The workflow, reachable from the root: snakemake all
include: "workflow/Snakefile"
