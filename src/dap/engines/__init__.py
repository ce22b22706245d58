"""How several processes, GPUs and machines make one distilled set: the local engine, shards under any launcher, and Ray.

The units of the work are the recipe's (`methods.base.plan`), never the number of workers, so each engine makes the same images.
"""
