"""Read inputs and paint pictures on one machine; the only room that joins the algorithm and files."""
