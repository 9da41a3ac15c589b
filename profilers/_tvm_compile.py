"""From an ONNX model to a library that TVM's virtual machine runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import tvm
from tvm import relax, topi
from tvm.ir import GlobalVar, IRModule
from tvm.relax import transform
from tvm.relax.expr_functor import PyExprMutator, mutator
from tvm.relax.frontend.onnx import from_onnx
from tvm.tirx import PrimFunc

from hwnas.profilers._tvm_kernels import Kernels


def compile_model(model: Path, library: Path, kernels: Kernels) -> None:
    """Write the library of ``model``: the functions ``main``, and ``image_shape``, its input's."""
    target, network = kernels.target, onnx.load(model)
    module = from_onnx(network)
    module["image_shape"] = _shape_function([d.dim_value for d in _dims(network.graph.input[0])])
    with target, tvm.transform.PassContext(opt_level=3):
        module = tvm.transform.Sequential(
            [
                transform.DecomposeOpsForInference(),
                transform.CanonicalizeBindings(),
                transform.LegalizeOps(_VECTORIZED if target.kind.name == "llvm" else None),
                transform.AnnotateTIROpPattern(),
                transform.FoldConstant(),
                transform.FuseOps(),
                transform.FuseTIR(),
            ]
        )(module)
        build = _linked if target.kind.name == "llvm" else _built_whole
        build(module, kernels).export_library(str(library))


def _dims(value: onnx.ValueInfoProto) -> Any:
    return value.type.tensor_type.shape.dim


def _shape_function(shape: list[int]) -> Any:
    builder = relax.BlockBuilder()
    with builder.function("image_shape", []):
        builder.emit_func_output(relax.ShapeExpr(shape))
    return builder.get()["image_shape"]


def _linked(module: IRModule, kernels: Kernels) -> Any:
    """An executable of kernels that were compiled one by one, now or for an earlier network.

    Compiling all kernels of a network takes LLVM some 10 s; linking them takes 0.4 s.
    """
    module = relax.get_pipeline("default_build")(module)
    functions, renamed, libraries = {}, {}, []
    for variable, function in module.functions_items():
        if not isinstance(function, PrimFunc):
            functions[variable] = function
            continue
        name, path = kernels.compiled(function)
        libraries.append(tvm.runtime.load_static_library(str(path), [name]))
        renamed[variable] = GlobalVar(name)
        relax.expr._update_type(renamed[variable], variable.ty)
    rename = _Rename(renamed)
    functions = {v: rename.visit_expr(function) for v, function in functions.items()}
    linked = IRModule(functions, attrs={"external_mods": libraries})
    return relax.build(linked, kernels.target, relax_pipeline=None)


def _built_whole(module: IRModule, kernels: Kernels) -> Any:
    """An executable for a GPU; DLight's rules schedule what is not tuned."""
    for variable, function in module.functions_items():
        if kernels.trials and isinstance(function, PrimFunc):
            module.update_func(variable, kernels.scheduled(function))
    return tvm.compile(module, kernels.target)


@mutator
class _Rename(PyExprMutator):  # type: ignore[misc]
    """Calls other functions instead of those in ``renamed``."""

    def __init__(self, renamed: dict[GlobalVar, GlobalVar]):
        super().__init__()
        self._renamed = renamed

    def visit_global_var_(self, variable: GlobalVar) -> GlobalVar:
        return self._renamed.get(variable, variable)


def _sigmoid(builder: Any, call: Any) -> Any:
    """tanh(x/2)/2 + 1/2, by TVM's rational tanh; a kernel for each operator, so that they fuse."""
    half = tvm.tirx.const(0.5, call.args[0].ty.dtype)
    halved = builder.emit_te(lambda x: topi.multiply(x, half), call.args[0])
    tanh = builder.emit_te(topi.fast_tanh, halved)
    return builder.call_te(lambda x: topi.add(topi.multiply(x, half), half), tanh)


def _softmax(builder: Any, call: Any) -> Any:
    return builder.call_te(topi.nn.fast_softmax, call.args[0], call.attrs.axis)


_VECTORIZED = {"relax.sigmoid": _sigmoid, "relax.nn.softmax": _softmax}
"""Operators with an exponential, which LLVM would call from the C library a number at a time.

A tuned matrix product with a SiLU behind it took 0.70 ms so, and 0.09 ms with these.
"""
