"""What a sparse matrix is: which grains are kept, their values, and how both are stored."""

from pollard.formats.difference import Difference
from pollard.formats.matrix import SparseMatrix
from pollard.formats.pattern import Pattern
from pollard.formats.store import load_tensors, load_topologies, save_tensors, save_topologies, write_atomic
from pollard.formats.topology import Topology
from pollard.formats.transpose import Transpose
from pollard.formats.waste import expected_waste_factor, waste_factor

__all__ = [
    "Difference",
    "Pattern",
    "SparseMatrix",
    "Topology",
    "Transpose",
    "expected_waste_factor",
    "load_tensors",
    "load_topologies",
    "save_tensors",
    "save_topologies",
    "waste_factor",
    "write_atomic",
]
