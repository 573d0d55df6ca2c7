"""From addresses to painted pictures on one machine: the only room that joins the art and files."""
