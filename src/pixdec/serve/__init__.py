"""Decoding as a service: an engine with a queue and workers (`engine`), and HTTP around it (`http`), by `pixdec serve`.

settings → jobs → pieces → worker (a process for each device) → handle → engine (queue, batches) → schema → bodies
→ http → ray_app
"""
