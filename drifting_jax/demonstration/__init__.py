"""The page that shows a trained run: what it computes, what it draws, and its server."""
