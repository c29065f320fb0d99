"""Rollouts: a generation meets twenty devices before it meets a million, and statistics decide who is next.

pure        plan (the decision), failures and ranks (the statistics), cohorts (who is next), states (a table), simulate
persisted   releases (what can be rolled out), records (people's moves), steward (a look at the numbers)
devices     picks (what the director tells each), settle (what became of each), compare
"""
