"""What loading the pack costs ComfyUI when it starts. `python pack_start.py`, in a process of its own, prints JSON.

host: processor seconds until the pack's turn. processor, clock: seconds of the pack alone, with its schemas. ids: its
nodes. modules: what was imported for it.
"""

import asyncio
import importlib
import json
import sys
import time

import finding

if __name__ == "__main__":
    import_pack, finding.import_pack = finding.import_pack, lambda: None
    host = finding.find_host()
    assert host is not None
    finding.import_host(host)
    for name in ("execution", "server", "nodes", "comfy_api.latest"):  # as main.py has by then
        importlib.import_module(name)
    before, began, clock = set(sys.modules), time.process_time(), time.perf_counter()
    import_pack()
    extension = asyncio.run(sys.modules[finding.PACK].comfy_entrypoint())
    ids = [node.GET_SCHEMA().node_id for node in asyncio.run(extension.get_node_list())]
    took = {"host": began, "processor": time.process_time() - began, "clock": time.perf_counter() - clock}
    sys.stdout.write(json.dumps({**took, "ids": ids, "modules": sorted(set(sys.modules) - before)}))
