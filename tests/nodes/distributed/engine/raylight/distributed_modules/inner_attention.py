from contextvars import ContextVar

INNER_ATTENTION_KEY = "raylight_inner_attention"
_FACTORIES = {}
_ASKED = ContextVar("asked", default=None)


class InnerAttentionRegistry:
    @staticmethod
    def available():
        return tuple(sorted(_FACTORIES))


def register_inner_attention(name):
    if name in _FACTORIES:
        raise ValueError(f"{name} is registered already")

    def register(factory):
        _FACTORIES[name] = factory
        return factory

    return register


def create_inner_attention(name, **arguments):
    return _FACTORIES[name](**arguments)


def _with_options(model, change):
    model = model.clone()
    options = dict(model.model_options.get("transformer_options", {}))
    change(options)
    model.model_options = model.model_options | {"transformer_options": options}
    return model


def set_inner_attention(model, processor):
    return _with_options(model, lambda options: options.update({INNER_ATTENTION_KEY: processor}))


def clear_inner_attention(model, processor_type=None):
    def change(options):
        if processor_type is None or isinstance(options.get(INNER_ATTENTION_KEY), processor_type):
            options.pop(INNER_ATTENTION_KEY, None)

    return _with_options(model, change)
