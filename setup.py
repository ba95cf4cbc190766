"""What pyproject.toml cannot say: the compiled module, without which everything works as well, but slower."""

from Cython.Build import cythonize
from setuptools import Extension, setup

LANE = Extension(
    "overlayfs_py.wire.lane.lane",
    ["overlayfs_py/wire/lane/lane.pyx"],
    define_macros=[("_GNU_SOURCE", "1"), ("_FILE_OFFSET_BITS", "64")],
    extra_compile_args=["-O2"],
    libraries=["pthread"],
    optional=True,
)

setup(
    ext_modules=cythonize(
        [LANE], build_dir="build/cython", compiler_directives={"language_level": 3}
    )
)
