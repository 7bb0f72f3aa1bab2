"""Measurements: bundle + classifiers + data → metrics and gallery, breakdown; the metric's floor; latency and cost."""


rule evaluate:
    """bundle → metrics, gallery"""
    input:
        inputs_of(ROOT + "/evaluation/{variant}-{digest}/manifest.json"),
    output:
        ROOT + "/evaluation/{variant}-{digest}/manifest.json",
    log:
        ROOT + "/logs/evaluation-{variant}-{digest}.log",
    resources:
        gpu=1,
    shell:
        "msd evaluate {output} --processes {resources.gpu} {CONFIGURATION} 2>&1 | keep {log}"


rule breakdown:
    """bundle → every student on every part and class, nearest training images"""
    input:
        inputs_of(ROOT + "/evaluation/breakdown/{variant}-{digest}/manifest.json"),
    output:
        ROOT + "/evaluation/breakdown/{variant}-{digest}/manifest.json",
    log:
        ROOT + "/logs/breakdown-{variant}-{digest}.log",
    shell:
        "msd breakdown {output} {CONFIGURATION} 2>&1 | keep {log}"


rule floor:
    """training half → metrics of real images"""
    input:
        inputs_of(ROOT + "/evaluation/real-data-{digest}/manifest.json"),
    output:
        ROOT + "/evaluation/real-data-{digest}/manifest.json",
    log:
        ROOT + "/logs/evaluation-real-data-{digest}.log",
    shell:
        "msd floor {output} {CONFIGURATION} 2>&1 | keep {log}"


rule latency:
    """all bundles → time, operations, memory and energy of an image, measured side by side"""
    input:
        inputs_of(ROOT + "/evaluation/latency-{digest}/manifest.json"),
    output:
        ROOT + "/evaluation/latency-{digest}/manifest.json",
    log:
        ROOT + "/logs/evaluation-latency-{digest}.log",
    shell:
        "msd latency {output} {CONFIGURATION} 2>&1 | keep {log}"


# "real-data" and "latency" are not names of variants, nor is anything with a slash
ruleorder: breakdown > evaluate
ruleorder: floor > evaluate
ruleorder: latency > evaluate
