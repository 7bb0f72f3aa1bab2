"""Claims: the evaluations of several training seeds → docs/claims.md, rebuilt from the manifests put beside it."""


rule claims:
    """evaluations, latency → claims page"""
    input:
        [str(path) for path in PLAN.claim_inputs],
    output:
        str(PLAN.claims),
    log:
        ROOT + "/logs/claims.log",
    shell:
        "msd report claims {CONFIGURATION} 2>&1 | keep {log}"
