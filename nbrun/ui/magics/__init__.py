"""The magics: lines parsed, completed and explained."""
