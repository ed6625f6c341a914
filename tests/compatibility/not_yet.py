"""What ought to work and does not: each line goes when it does."""

NOT_YET = {
    "`make_fx`": "symbolic sizes, and gradients within it",
    "`fx.symbolic_trace`": "it cannot follow what depends on the number of dimensions",
    "ONNX, `dynamo=True`": "an error that does not say what to do: `densify_` first",
    "ONNX, `dynamo=False`": "warnings of its tracer",
    "`nn.TransformerEncoder`, trained, then in `eval` (the fast path)": "it reads `weight`",
}
