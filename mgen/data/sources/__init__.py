"""Where rows come from: files, databases, URLs, the hub, intervals of a genome."""
