"""Networks: mathematics only. They know no mesh and draw no random numbers of their own."""
