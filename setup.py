"""What pyproject.toml cannot say: the compiled module, without which everything works as well, but slower."""

from Cython.Build import cythonize
from setuptools import Extension, setup

LANE = Extension(
    "overlayfs_py.wire.lane.lane",
    ["overlayfs_py/wire/lane/lane.pyx"],
    define_macros=[("_GNU_SOURCE", "1"), ("_FILE_OFFSET_BITS", "64")],
    libraries=["pthread"],
)

modules = cythonize([LANE], build_dir="build/cython")
for module in modules:
    module.optional = True  # which cythonize does not hand on
setup(ext_modules=modules)
