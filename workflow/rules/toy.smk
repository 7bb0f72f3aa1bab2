"""The 2-D toy: settings → students of a mixture of Gaussians. Its cells lie in results/toy2d/, which no rule declares."""


if PLAN.toy:

    rule toy_figure:
        """settings → K students for each K, and their distance to the teacher"""
        output:
            str(PLAN.toy.manifest),
        log:
            ROOT + "/logs/toy-figure.log",
        priority: 1  # before the evaluations, which can only come late
        shell:
            "msd toy {output} {CONFIGURATION} 2>&1 | keep {log}"


if PLAN.toy_map:

    rule toy_map:
        """settings → the map of student width and training budget"""
        output:
            str(PLAN.toy_map.manifest),
        log:
            ROOT + "/logs/toy-map.log",
        shell:
            "msd toy --map {output} {CONFIGURATION} 2>&1 | keep {log}"


rule toy:
    """Target: the toy of the report, if the experiment has one."""
    input:
        [str(PLAN.toy.manifest)] if PLAN.toy else [],


rule map:
    """Target: where many students pay; half an hour."""
    input:
        [str(PLAN.toy_map.manifest)] if PLAN.toy_map else [],
