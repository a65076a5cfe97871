// In the head of the page, so that it is never drawn in the other colours first.
try {
  const theme = localStorage.getItem("malt-theme");
  if (theme) document.documentElement.dataset.theme = theme;
} catch { /* storage may be forbidden for files */ }
