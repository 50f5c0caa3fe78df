"""A worker of raylight in a process of its own: it has ComfyUI and raylight, and has never heard of the pack.

Reads functions with their arguments from standard input as cloudpickle, as Ray sends them, and writes what they return.
"""

import struct
import sys

import cloudpickle
from models import Model, WanModel

model = Model(WanModel())
while header := sys.stdin.buffer.read(4):
    changes, function, arguments = cloudpickle.loads(sys.stdin.buffer.read(*struct.unpack("I", header)))
    arguments = cloudpickle.loads(arguments)
    result = function(model, *arguments)
    if changes:
        model, result = result, None
    answer = cloudpickle.dumps((result, "server" in sys.modules))
    sys.stdout.buffer.write(struct.pack("I", len(answer)) + answer)
    sys.stdout.buffer.flush()
