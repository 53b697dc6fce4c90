from kdrs.cli import main

main()
