"""x"""
from pathlib import Path
RESULTS = Path(__file__).parent / "results.json"
def kept(results): return ""
def write_page(): return ""
