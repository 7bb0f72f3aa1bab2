"""Report: every manifest → ablation.csv, ablation.md, metrics.json, figures/, report.html."""


rule report:
    """manifests → table, figures, page"""
    input:
        [str(path) for path in PLAN.report_inputs],
    output:
        str(PLAN.report),
    log:
        ROOT + "/logs/report.log",
    shell:
        "msd report {CONFIGURATION} 2>&1 | keep {log}"
