"""Training on the DeepSpeed engine: one loop for every method."""

from rankdrift.training import heap

# before pandas is imported, which begins a thread, and before torch makes its first tensor
heap.share_one_heap()
heap.use_huge_pages()
