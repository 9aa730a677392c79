"""Which parts of which packages are about what, for ``builtin:api-topics``; chosen on validation rows only."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """A module or package by its path below site-packages, and whether methods are read beside functions and classes."""

    path: str
    methods: bool


def _functions(*paths: str) -> tuple[Part, ...]:
    return tuple(Part(path, methods=False) for path in paths)


def _all(*paths: str) -> tuple[Part, ...]:
    return tuple(Part(path, methods=True) for path in paths)


def _below(package: str, modules: str) -> tuple[str, ...]:
    return tuple(f"{package}/{module}" for module in modules.split())


# Methods are read where they carry the topic themselves (the area of a polygon); elsewhere they are mostly housekeeping.
TOPICS: dict[str, tuple[Part, ...]] = {
    "statistics": _functions("scipy/stats", "sympy/stats", "torch/distributions"),
    "plotting": _functions(
        *_below(
            "matplotlib",
            "axes pyplot legend colors cm colorbar ticker patches lines contour quiver streamplot table text figure gridspec "
            "image collections axis scale stackplot sankey spines hatch markers colorizer layout_engine tight_layout "
            "offsetbox projections animation widgets",
        ),
        "mpl_toolkits",
        "pandas/plotting",
    ),
    "geometry": _all("scipy/spatial", "sympy/geometry", "sympy/vector"),
    "distributed computing": _functions(
        "torch/distributed", *_below("deepspeed", "runtime comm utils launcher moe"), "accelerate"
    ),
    "graphs": _functions("networkx", "scipy/sparse/csgraph"),
    "web": _all("httpx", "requests", "urllib3", "httpcore"),
    "databases": _functions(*_below("sqlalchemy", "sql types engine schema pool"), "alembic"),
    "signal processing": _all("scipy/signal", "scipy/fft", "scipy/fftpack", "numpy/fft"),
    "linear algebra": _all("scipy/linalg", "scipy/sparse", "numpy/linalg", "sympy/matrices"),
    "language": _functions(
        *_below(
            "nltk",
            "tokenize stem tag parse translate sentiment corpus chunk metrics sem lm classify text collocations chat ccg "
            "cluster grammar",
        )
    ),
    "physics": _functions("sympy/physics"),
    "calculus": _functions(
        *_below("sympy", "integrals series calculus solvers/ode"),
        *_below("scipy", "integrate interpolate"),
        "mpmath/calculus",
    ),
    "dates and times": _all(
        "pandas/tseries",
        "dateutil",
        *_below(
            "pandas/core", "indexes/datetimes indexes/period arrays/datetimes arrays/timedeltas arrays/period resample"
        ),
        "matplotlib/dates",
    ),
    "file systems": _all("fsspec"),
}

# A regular expression, compared whatever the case.
LIBRARY_NAMES = (
    "scipy|sympy|torch|pytorch|deepspeed|numpy|networkx|matplotlib|pyplot|pandas|sqlalchemy|alembic|httpx|urllib3|httpcore|"
    "nltk|fsspec|mpmath|transformers|huggingface|mpl|pylab|dateutil|mplot3d|axes_grid1|np|pd|plt|nx"
)

# The packages that are read, at the versions of constraints.txt, and the sha256 of the rows that they give.
VERSIONS = {
    "accelerate": "1.15.0",
    "alembic": "1.20.1",
    "deepspeed": "0.19.8",
    "fsspec": "2026.9.0",
    "httpcore": "1.0.9",
    "httpx": "0.28.1",
    "matplotlib": "3.11.2",
    "mpmath": "1.3.0",
    "networkx": "3.6.1",
    "nltk": "3.10.4",
    "numpy": "2.4.6",
    "pandas": "3.1.1",
    "python-dateutil": "4.0.0",
    "requests": "2.34.2",
    "scipy": "1.17.1",
    "sqlalchemy": "2.1.9",
    "sympy": "1.14.0",
    "torch": "2.13.0",
    "urllib3": "2.8.0",
}
FINGERPRINT = "3fa4ada0096a95f657056abdcb123605c69a80fd88d6025f4173afbc423753af"
