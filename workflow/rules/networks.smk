"""Teacher and classifiers: file, URL, hub or training half → verified weights."""


rule teacher:
    """source → teacher weights"""
    input:
        inputs_of(ROOT + "/networks/teacher-{digest}/manifest.json"),
    output:
        ROOT + "/networks/teacher-{digest}/manifest.json",
    log:
        ROOT + "/logs/networks-teacher-{digest}.log",
    priority: images_ahead(ROOT + "/networks/teacher-{digest}/manifest.json")
    shell:
        "msd teacher {output} {CONFIGURATION} 2>&1 | tee {log}"


rule classifier:
    """source → weights of the feature network or of the judge"""
    input:
        inputs_of(ROOT + "/networks/{role}-{digest}/manifest.json"),
    output:
        ROOT + "/networks/{role}-{digest}/manifest.json",
    log:
        ROOT + "/logs/networks-{role}-{digest}.log",
    wildcard_constraints:
        role="features|judge",
    priority: images_ahead(ROOT + "/networks/{role}-{digest}/manifest.json")
    shell:
        "msd classifier {output} {CONFIGURATION} 2>&1 | tee {log}"
