"""A real ComfyUI server for tests: where it is, how it starts, what to load and how to talk to it.

install.py       put its requirements beside a CPU torch (also a script)
checkpoints.py   tiny random models with the original key layouts
server.py        start and stop one server process with the pack in it
client.py        queue workflows, wait, read results and errors
graphs.py        API-format workflows: loader, our node, sampler, what to save
"""
