from llmosd.application.cli import main

raise SystemExit(main())
