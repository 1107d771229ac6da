from mgen.cli import main

main()
