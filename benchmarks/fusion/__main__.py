import sys

from benchmarks.fusion.fusion import main

if __name__ == '__main__':
    sys.exit(main())
