"""Shows one result: a self-contained HTML page, or Markdown tables of ratios.

Owns how figures look; what they are comes from `figures`.
"""
