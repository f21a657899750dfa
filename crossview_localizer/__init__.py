import os

# A picture of a few kilobytes can unpack to gigabytes; OpenCV refuses more pixels than this.
# It is read when cv2 is loaded.
os.environ.setdefault('OPENCV_IO_MAX_IMAGE_PIXELS', str(2**28))
