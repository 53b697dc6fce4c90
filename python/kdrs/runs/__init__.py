"""Run files carried out, and the directories that they leave."""
