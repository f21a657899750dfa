import sys

from benchmarks.speed.bench import main

if __name__ == '__main__':
    sys.exit(main())
