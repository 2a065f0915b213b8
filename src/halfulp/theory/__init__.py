"""The theory of stalling: closed forms (:mod:`~halfulp.theory.stall`) and when to reset (:mod:`~halfulp.theory.planner`)."""
