"""What people type: `casemate <noun> <verb>`. One module per noun, imported when typed; only this layer wires them."""
