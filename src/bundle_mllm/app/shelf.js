// The buttons of items: which one was pressed goes to the server. One sound plays at a time.
element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-action]');
  if (!button) return;
  button.classList.add('bm-wait');  // until the answer redraws it
  const item = button.dataset.item === undefined ? null : Number(button.dataset.item);
  trigger('click', { action: button.dataset.action, item });
});
element.addEventListener('play', (event) => {
  for (const other of document.querySelectorAll('audio')) if (other !== event.target) other.pause();
}, true);
