"""How a network is run: what is planned, moved, compiled or shared around it, from outside."""
