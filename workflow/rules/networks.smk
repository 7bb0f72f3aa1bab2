"""Teacher and classifiers: file, URL, hub or training half → verified weights. What is only fetched needs no job."""


def trained(node):
    """Whether a network is trained here, which needs a GPU."""
    return node.settings["source"] == "train"


rule teacher:
    """source → teacher weights"""
    input:
        inputs_of(ROOT + "/networks/teacher-{digest}/manifest.json"),
    output:
        ROOT + "/networks/teacher-{digest}/manifest.json",
    log:
        ROOT + "/logs/networks-teacher-{digest}.log",
    priority: images_ahead(ROOT + "/networks/teacher-{digest}/manifest.json")
    localrule: not trained(PLAN.teacher)
    resources:
        gpu=1,
    shell:
        "msd teacher {output} --processes {resources.gpu} {CONFIGURATION} 2>&1 | keep {log}"


rule classifier:
    """source → weights of a feature network or of the judge"""
    input:
        inputs_of(ROOT + "/networks/{role}-{digest}/manifest.json"),
    output:
        ROOT + "/networks/{role}-{digest}/manifest.json",
    log:
        ROOT + "/logs/networks-{role}-{digest}.log",
    wildcard_constraints:
        role="features|second-features|judge",
    priority: images_ahead(ROOT + "/networks/{role}-{digest}/manifest.json")
    localrule: not any(trained(node) for role, node in PLAN.networks.items() if role != "teacher")
    resources:
        gpu=1,
    shell:
        "msd classifier {output} --processes {resources.gpu} {CONFIGURATION} 2>&1 | keep {log}"
