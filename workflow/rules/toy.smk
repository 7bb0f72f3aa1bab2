"""The 2-D toy: settings → students of a mixture of Gaussians. Its cells lie in results/toy2d/, which no rule declares.

An experiment without the toy has the two targets all the same, and they do nothing.
"""


rule toy:
    """settings → K students for each K, and their distance to the teacher; also a target"""
    output:
        [str(PLAN.toy.manifest)] if PLAN.toy else [],
    log:
        ROOT + "/logs/toy.log",
    priority: 1  # before the evaluations, which can only come late
    shell:
        "msd toy {output} {CONFIGURATION} 2>&1 | keep {log}" if PLAN.toy else ":"


rule map:
    """Target: where many students pay."""
    output:
        [str(PLAN.toy_map.manifest)] if PLAN.toy_map else [],
    log:
        ROOT + "/logs/toy-map.log",
    shell:
        "msd toy --map {output} {CONFIGURATION} 2>&1 | keep {log}" if PLAN.toy_map else ":"
