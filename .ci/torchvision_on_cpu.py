"""Let torchvision's wheel, built for CUDA, be imported beside a torch for the CPU; for development and CI only.

    .venv/bin/python .ci/torchvision_on_cpu.py

writes this file into that environment, where every Python process loads it (through a .pth file, at no cost). When
torchvision is about to be imported and its compiled part cannot be loaded, two operators are declared that its Python
part refers to. They have no implementation: boxes cannot be pruned there, which open_clip never does.
"""

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder

_LIBRARIES = []  # a declaration lasts as long as its library object


class _Finder(MetaPathFinder):
    """Finds torchvision as Python does, and declares the operators just before it runs."""

    def find_spec(self, name, path=None, target=None):
        if name != "torchvision":
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def declare_and_execute(module):
                _declare(spec.submodule_search_locations)
                execute(module)

            spec.loader.exec_module = declare_and_execute
        return spec


def _declare(folders):
    from pathlib import Path

    import torch

    for folder in folders or ():
        for path in Path(folder).glob("_C*.so"):
            try:
                torch.ops.load_library(str(path))
                return  # a torchvision that fits
            except OSError:
                pass
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _LIBRARIES.append(library)


def _install():
    import sysconfig
    from pathlib import Path

    if sys.prefix == sys.base_prefix:
        raise SystemExit("Run this with the Python of a virtual environment: it writes into its site-packages.")
    packages = Path(sysconfig.get_path("purelib"))
    (packages / "torchvision_on_cpu.py").write_text(Path(__file__).read_text(encoding="utf-8"), encoding="utf-8")
    (packages / "torchvision_on_cpu.pth").write_text("import torchvision_on_cpu\n", encoding="utf-8")


if __name__ == "__main__":
    _install()
else:
    sys.meta_path.insert(0, _Finder())
