"""How infidelity works, step by step."""
