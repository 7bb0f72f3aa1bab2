"""COCO 2014: official zip files → pictures, captions, the captions of the evaluation. For any experiment, once."""


rule coco:
    """the network → val2014, its captions, eval-30k.txt; also a target"""
    output:
        COCO,
    log:
        ROOT + "/logs/coco.log",
    shell:
        "msd coco $(dirname {output}) 2>&1 | keep {log}"
