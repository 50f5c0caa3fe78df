def ray_patch(function):
    """A method that changes a model, run in all workers."""

    def in_workers(node, ray_actors, *args, **kwargs):
        def change(model, *args, **kwargs):
            return function(node, model, *args, **kwargs)

        for worker in ray_actors["workers"]:
            worker.model_function_runner.remote(change, *args, **kwargs)
        return (ray_actors,)

    return in_workers
