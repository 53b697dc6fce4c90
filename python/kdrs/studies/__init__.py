"""Many runs that answer one question.

A **study** is a run file with ranges over some of its keys. It has **arms**: the same run in several ways, such as with a
method and alone. Each arm gets the same number of **trials**, the first at the file's own values. Validation alone chooses.

`space` is the ranges, `plan` the file, `points` which values a trial has, `sweep` carries it out, `found` what came of it.
`recipe` is a data set with runs and studies on it, `printed` their page beside what a paper printed.

All of a study's state is on disk, a run directory and a record a trial. What a trial is follows from the file and from the
records of earlier batches alone. So a study may be stopped, gone on with, and worked on by several processes and machines
that share its folder: it ends the same.
"""
