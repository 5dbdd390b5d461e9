"""What pages, exports and the command line say of ensembles of transcoders. Standard library only.

A transcoder reads activations at one hook point and predicts those at another. Its features are matched by decoder rows, which
are directions of what it predicts. What compares its prediction with the model is undefined where that place is not known.
"""

OUTPUT_DIRECTIONS = "output directions"
SENTENCE = (
    "transcoders: features are matched and judged by their output directions, the decoder rows; activity is that of the encoder "
    "at the input hook point"
)
NO_OUTPUT = "undefined: the output hook point is not recorded"
NOT_RECORDED = "the recorded activations are those of the input hook point, and those of the output's were not given"
UNPREDICTABLE = (
    "no reconstruction: undefined: "  # how the remark on transcoders begins whose output is compared with nothing
)
WAY_OUT = "--hookpoint-out NAME"
TRANSCODERS_DO_NOT_POOL = "a pool is trained to give back what it reads, and transcoders predict something else"
