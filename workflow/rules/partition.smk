"""Partitions: classes (and, for k-means, the teacher's class embeddings) → K parts and a balance report."""


rule partition:
    """classes → partition.json"""
    input:
        inputs_of(ROOT + "/partition/{kind}-{digest}/manifest.json"),
    output:
        ROOT + "/partition/{kind}-{digest}/manifest.json",
    log:
        ROOT + "/logs/partition-{kind}-{digest}.log",
    priority: images_ahead(ROOT + "/partition/{kind}-{digest}/manifest.json")
    localrule: PLAN.text is None  # classes are few, prompts may be millions
    shell:
        "msd partition {output} {CONFIGURATION} 2>&1 | keep {log}"
