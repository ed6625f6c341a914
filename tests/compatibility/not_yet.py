"""What ought to work and does not: each line goes when it does."""

NOT_YET = {
    "`make_fx`": "symbolic sizes, and gradients within it",
    "ONNX, `dynamo=True`": "an error that does not say what to do: `densify_` first",
    "ONNX, `dynamo=False`": "warnings of its tracer",
}
