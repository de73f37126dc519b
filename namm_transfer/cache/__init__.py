"""The key/value cache that a policy keeps small, and how it meets a transformers model without patching it.

transformers knows two things of this package: the attention implementation "memory" (an attention function and a mask
function, registered by name) and `MemoryCache`, a cache like any other. A forward call passes through each layer like
this:

1. The model asks for a mask. `MemoryCache` answers the question for its number of columns with a `ColumnCount`, an
   integer by which the mask function sees who asked, so that it returns a `MemoryMask`: not a tensor, but the arguments
   from which the mask of each head can be made. Without a `MemoryCache` it returns what SDPA gets.
2. The model calls `MemoryCache.update` with the new keys and values. The layer stores nothing yet. It notes the pair as
   its `Handover` and returns the same numbers as `GuardedTensor`s, which carry that handover and raise a
   `NammTransferError` as soon as any other code reads them: a model that repeats, rebuilds or shares its keys, or whose
   attention is not "memory", cannot come to a wrong result.
3. The model calls the attention function, which finds the layer through the guarded keys. It checks that keys, values
   and mask belong together and that nothing is asked for that cannot be served exactly. If something is, the handover
   is taken back and the cache is what it was.
4. Otherwise the call goes through in blocks that end where the policy acts (`blocks`): store a block, attend, show the
   policy the attention weights, let it evict.
5. `MemoryLayer.close` counts the call's columns and ends the handover.

A handover that is still there at the next `update`, or a layer that is not where the first one is, tells of a call that
an error ended half way; the cache is then refused until `reset`.

A call that torch.compile traces differs if nothing is evicted, watched or padded (`MemoryCache.give_all`): the mask
is SDPA's, and `MemoryLayer.extend` stores keys and values at once and returns all of them, unguarded, since they are
right for every reader.

Nothing of this is global: a call finds its layer by the tensors it is given, so that neither threads nor an error in
one model can disturb another. While autograd records, `storage` writes nothing in place, so that gradients are right;
a cache that is filled again by a recomputing backward pass is refused.

    memory_cache   the cache; save and load (`saved`)
    layer          one layer; head_group: heads stored together; pages: heads of different lengths; storage: tensors
                   with room to grow
    hybrid         states of layers without keys and values, and whose turn it is in a call
    attention      the attention function and its checks; blocks: block by block; kernels: the arithmetic
    device         the same on a GPU, launching triton_kernels, which also fold the weights into the policy's state
    masks          the mask function; guard: tensors that only the memory attention may read
    report         what is kept
"""
