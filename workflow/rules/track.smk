"""Tracking: journals and manifests → runs in MLflow (./mlflow.db)."""


rule track:
    """report and journals → MLflow"""
    input:
        str(PLAN.report),
    output:
        str(PLAN.tracking),
    log:
        ROOT + "/logs/track.log",
    shell:
        "msd track {CONFIGURATION} 2>&1 | keep {log}"
