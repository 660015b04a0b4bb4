"""Tables, curves and the page of an evaluation."""
