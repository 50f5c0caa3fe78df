class WrappersMP:
    OUTER_SAMPLE = "outer_sample"
    APPLY_MODEL = "apply_model"


class CallbacksMP:
    ON_CLEANUP = "on_cleanup"
